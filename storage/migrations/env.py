"""How Alembic reaches the database: on the connection, and in the transaction, that ``storage.migrate`` hands over."""

from alembic import context

from storage.tables import schema

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=schema, compare_type=True, compare_server_default=True)
with context.begin_transaction():
    context.run_migrations()
