import { readFileSync } from "node:fs";
import { taskUpdates } from "@spectral-notify/react";
import { buildSchema, parse, validate } from "graphql";
import { expect, test } from "vitest";
import { stringifyDocument } from "@urql/core";
import * as documents from "./documents";

// The types are made from a copy of the schema; this asks the schema itself.
const schema = buildSchema(readFileSync(new URL("../../../schema.graphql", import.meta.url), "utf8"));
const { DETAIL_FIELDS, ...operations } = documents;

test.each(Object.entries(operations))("the server knows all that %s asks for", (_, document) => {
  expect(validate(schema, parse(stringifyDocument(document)))).toEqual([]);
});

test("the server knows all that a task's page asks for while it follows it", () => {
  expect(validate(schema, parse(taskUpdates(DETAIL_FIELDS)))).toEqual([]);
});
