"""A real Valkey and a real Postgres from wheels, and every other process of `yyc3 up`, under one guard.

servers   how each of the two is prepared and started
guard     the process that owns all children and ends them with itself or with its parent
running   what `up` writes down so that other commands find it
home      starting and talking to a guard
"""
