"""What `import fedaipc` offers: the same settings, checks and runs as the command line.

data.py        load_data: files, folders, tables in memory; which client holds what
job.py         Job: settings with what one does with them; its plan
simulate.py    simulate: many clients on this machine
run.py         Run: what a run was, and its model; compare
federation.py  Federation: sign a job, hand it to a server
scratch.py     folders that live as long as an object
fleet.py       plan_fleet: what a job takes on any number of PCs
lab.py         fedaipc.privacy: plan, audit, lower_bound
"""
