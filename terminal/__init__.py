"""The command line for tasks: a client of the API like any other, which takes nothing of the server.

What is imported here and in `commands` is what every start of the program costs, so it is little; the rest comes when
a command runs.
"""
