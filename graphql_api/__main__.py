"""``python -m graphql_api`` is ``spectral-notify``."""

from graphql_api.cli import main

main()
