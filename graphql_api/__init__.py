"""The GraphQL schema and the sockets it is served on; nothing about SQL."""
