"""What this PC can do: its parts, its measured speed, what a job would take and cost here.

machine.py   processor, memory, accelerators; power, where the system reports it
probe.py     texts per second, ordinary and private; threads and micro-batch by measurement
rehearsal.py whether private training is possible here at all
saved.py     what was found out, for later jobs on this PC
forecast.py  minutes, bytes, watt-hours and money of a job; the price table
"""
