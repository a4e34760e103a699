import { initGraphQLTada } from "gql.tada";
import type { introspection } from "./schema";

/** Writes a document whose types are those of `schema.graphql`. */
export const graphql = initGraphQLTada<{
  introspection: introspection;
  scalars: { DateTime: string; JSON: unknown; ID: string };
}>();
