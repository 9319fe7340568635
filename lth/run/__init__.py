"""One command from its settings to its results. Uses everything but lth.api.

command.py goes from the settings to the last line on the terminal. session.py checks and starts (refusals.py: what is
another experiment; outlook.py: what is said before); holding.py says who may write what; tasks.py is the graph of
trainings, queue.py who gets which, jobs.py has them done, by processes.py on this machine or by cluster.py on many;
terminal.py and progress.py are the terminal, tensorboard.py the log; about.py, device.py and machine.py say
where it ran.
"""
