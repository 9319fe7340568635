"""One command from its settings to its results. Uses everything but lth.api.

command.py has the programs main.py and combine_plots.py. session.py checks, starts and ends a command: prepare.py makes
of settings what can be trained, forecast.py reports what it will take. queue.py says which runs can be trained now, and
shows what others do; loop.py is the loop of work, here or in several processes, which cluster.py starts on many
machines. progress.py and terminal.py are what is shown; device.py says where it runs.
"""
