"""A real Valkey and a real Postgres from wheels, and every other process of `yyc3 up`, under one supervisor.

postgres, valkey  how each of the two is prepared and started
servers     what they have in common
sockets     the folder of their unix sockets
supervisor  the process that owns all children and stops them with itself or with its parent
client      start a supervisor and send it commands
addresses   what `up` stores so that other commands find it
"""
