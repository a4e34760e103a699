"""``python -m graphql_api`` is ``spectral-notify``."""

from graphql_api.program import main

main()
