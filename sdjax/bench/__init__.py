"""`sdjax bench`: how long a network takes here, beside other implementations of it.

    cases     what is measured: a network, its random weights and inputs, as a compiled program
    exchange  the same weights and inputs for the others, in files
    ours      our side: first call and its parts, repeated calls, memory
    peers     theirs: a process in an environment of its own, told what to do line by line
    run       pairs of calls, ours and theirs in turn
    report    the result as a table

The others run in `tests/benchmarks`, whose `setup.py` makes their environments.
"""
