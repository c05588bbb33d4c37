"""A pipeline that says when it loads its models, for tests in which other processes use it."""

import os

from carl_hf import AffectPipeline


class CountedPipeline(AffectPipeline):
    def _loaded(self):
        if self._readers is None:
            with open(os.environ["CARL_TEST_LOADS"], "a") as file:
                file.write(f"{os.getpid()}\n")
        return super()._loaded()
