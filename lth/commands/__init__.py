"""One command from its settings to its results. Uses everything but lth.api.

command.py goes from the settings to the last line on the terminal. session.py checks and starts (outlook.py:
what is reported before). tasks.py is the graph of trainings, queue.py what of it can be
done now, holding.py what is done with runs under their locks, loop.py the loop of work, which processes.py starts
several times on this machine and cluster.py on many. progress.py and terminal.py are the terminal, tensorboard.py the
log; about.py and device.py say where it ran.
"""
