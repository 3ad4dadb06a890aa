"""What a job takes on a fleet that is not there yet: time, traffic, energy, cost, for any size.

fleet.py     the fleet file: speed classes, hours, network, dropouts, the server
load.py      what one round asks of PCs and server: seconds and bytes, thresholds
waiting.py   PCs that come and go, queues and silences: the arithmetic of it
events.py    one run as a sequence of events; PCs are counted, no model is trained
forecast.py  many runs of many fleets, summed up, beside a rented GPU
tables.py, chart.py   the same as tables and as a picture
"""
