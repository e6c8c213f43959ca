"""The rows of the fault matrix, as marks: what is promised. Tests anywhere carry them; `make faults` runs those and makes the table."""

import pytest

F1 = pytest.mark.fault("F1", "SIGKILL of a worker at any moment: at most one checkpoint interval lost, ORACLE")
F2 = pytest.mark.fault("F2", "exception or out of memory in a worker: as F1, memory told apart with a remedy")
F3 = pytest.mark.fault("F3", "a node dies: goes on with fewer workers and the same global batches, or waits and says so")
F4 = pytest.mark.fault("F4", "the driver dies: the same command resumes, no orphans; a lock refuses a second driver")
F5 = pytest.mark.fault("F5", "a stopped worker is noticed by its heartbeat, stacks written, restarted, ORACLE")
F6 = pytest.mark.fault("F6", "a straggler is named: compute or data wait")
F7 = pytest.mark.fault("F7", "kill at every point of a save: the newest committed checkpoint loads, partial ones are cleaned, ORACLE")
F8 = pytest.mark.fault("F8", "disk full: training goes on with the old checkpoint, loud, ends with an error after three")
F9 = pytest.mark.fault("F9", "damaged checkpoint: caught by checksum before loading, falls back, names the file, ORACLE")
F10 = pytest.mark.fault("F10", "resume with other ranks or another ZeRO stage: same items, losses within 1e-6")
F11 = pytest.mark.fault("F11", "a loss that is no number skips the step on all ranks alike; a spike is told with its items")
F12 = pytest.mark.fault("F12", "a replicated weight differs: stop, name the rank")
F13 = pytest.mark.fault("F13", "a data file changed between kill and resume: refused, named")
F14 = pytest.mark.fault("F14", "Ray Data task killed, 80 MB object store: retried, order unchanged, ORACLE")
F15 = pytest.mark.fault("F15", "SIGTERM or a preemption notice: a checkpoint at the next step, exit code 75, exact resume")
F16 = pytest.mark.fault("F16", "a trial that raises is a row with its reason; a killed driver loses at most the trials in flight")
F17 = pytest.mark.fault("F17", "the exam's engine crashes, hangs or keeps old weights: replaced once, then missing, never scored 0")
F18 = pytest.mark.fault("F18", "the retrieval store is locked, damaged or deleted: built anew, or named")
