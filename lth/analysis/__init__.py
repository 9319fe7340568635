"""What results show. Uses settings and records.

verdict.py has the statistics; sentences.py and printed.py put them in words and in tables; labels.py names runs and
settings.
"""
