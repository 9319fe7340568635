"""One command from its settings to its results. Uses everything but lth.api.

command.py goes from the settings to the last line on the terminal. session.py checks and starts (outlook.py: what is
reported before). tasks.py lists the runs, queue.py says what of them can be trained now, holding.py is about runs
before their training begins, loop.py is the loop of work, which processes.py starts several times on this machine and
cluster.py on many; watch.py shows what all of them do. progress.py and terminal.py are the terminal, tensorboard.py the
log; about.py and device.py say where it ran.
"""
