"""What results say. Uses settings and records.

verdict.py has the statistics; sentences.py and printed.py put them in words and in a table; labels.py names runs and
settings; sweep_table.py has the table of many experiments.
"""
