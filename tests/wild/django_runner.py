"""Runs those of Django's own tests that use a database, and writes the outcome of each to $WILD_OUTCOMES, a line a test."""

import os
import unittest

from django.test.runner import DiscoverRunner
from django.test.utils import iter_test_cases


class Result(unittest.TextTestResult):
    """Also of a run in several processes: what they say is said again here."""

    outcomes = {}

    def note(self, test, outcome):
        # A test with subtests has the worst of their outcomes.
        worse = ["ok", "skipped", "expected failure", "unexpected success", "FAIL", "ERROR"]
        test = getattr(test, "test_case", test)
        self.outcomes[test.id()] = max(self.outcomes.get(test.id(), "ok"), outcome, key=worse.index)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "ok")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, "skipped")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.note(test, "FAIL")

    def addError(self, test, err):
        super().addError(test, err)
        self.note(test, "ERROR")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note(test, "FAIL" if issubclass(err[0], test.failureException) else "ERROR")

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self.note(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.note(test, "unexpected success")


class Runner(DiscoverRunner):
    def load_tests_for_label(self, label, discover_kwargs):
        tests = super().load_tests_for_label(label, discover_kwargs)
        return self.test_suite(test for test in iter_test_cases(tests) if getattr(test, "databases", None))

    def get_resultclass(self):
        return Result

    def run_tests(self, *args, **kwargs):
        try:
            return super().run_tests(*args, **kwargs)
        finally:
            with open(os.environ["WILD_OUTCOMES"], "w") as file:
                file.writelines(f"{test} {outcome}\n" for test, outcome in sorted(Result.outcomes.items()))
