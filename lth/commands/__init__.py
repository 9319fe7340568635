"""One command from its settings to its results. Uses everything but lth.api.

command.py goes from the settings to the last line on the terminal. session.py checks and starts (outlook.py and
forecast.py: what is reported before). queue.py says which runs can be trained now, and shows what others do; holding.py
is about runs before their training begins; loop.py is the loop of work, here or in several processes, which cluster.py
starts on many machines. progress.py and terminal.py are the terminal, tensorboard.py the log; device.py says where it
runs.
"""
