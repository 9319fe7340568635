"""One command from its settings to its results. Uses everything but lth.api.

command.py has the programs main.py and combine_plots.py. session.py checks, starts and ends a command: prepare.py loads
the images and the model of its settings, forecast.py reports what it will take. queue.py finds runs that can be trained
now; loop.py is the work loop, here or in several processes, and cluster.py runs it on a Ray cluster. progress.py and
terminal.py write the output; device.py chooses the device.
"""
