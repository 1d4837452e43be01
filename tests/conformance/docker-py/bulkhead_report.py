"""A pytest plugin: runs the tests that were asked for, and writes one JSON line for each of them.

BULKHEAD_REPORT names the file; BULKHEAD_ONLY and BULKHEAD_SKIP hold words and patterns, one a line.
"""
import fnmatch
import json
import os

PREFIX = "tests/integration/"
ended = {}


def lines(variable):
    return [line for line in os.environ.get(variable, "").split("\n") if line]


def name(nodeid):
    return nodeid[len(PREFIX):] if nodeid.startswith(PREFIX) else nodeid


def pytest_collection_modifyitems(config, items):
    only, skip = lines("BULKHEAD_ONLY"), lines("BULKHEAD_SKIP")

    def wanted(item):
        own = name(item.nodeid)
        return (not only or any(word in own for word in only)) and not any(
            fnmatch.fnmatchcase(own, pattern) for pattern in skip
        )

    items[:] = [item for item in items if wanted(item)]


def pytest_runtest_logreport(report):
    """A test's outcome is that of its call, or of the first of set-up and tear-down that failed."""
    own = name(report.nodeid)
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "skipped"
    seen = ended.setdefault(own, {"name": own, "outcome": "passed", "detail": "", "seconds": 0})
    seen["seconds"] += report.duration
    if outcome != "passed" and seen["outcome"] == "passed":
        text = report.longreprtext if report.longrepr is not None else ""
        seen["outcome"], seen["detail"] = outcome, text[-4000:]
    if report.when == "teardown":
        with open(os.environ["BULKHEAD_REPORT"], "a") as file:
            file.write(json.dumps(seen) + "\n")
