"""Bytes on connections: uvicorn's HTTP with the bounds that it lacks, and WebSockets without a task for each."""
