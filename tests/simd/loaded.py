"""A plugin of pytest: fastdiff._C is the library that FASTDIFF_EMULATED names."""

import importlib.machinery
import importlib.util
import os
import sys


def load(path):
    loader = importlib.machinery.ExtensionFileLoader("fastdiff._C", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fastdiff._C", loader))
    loader.exec_module(module)
    sys.modules["fastdiff._C"] = module


load(os.environ["FASTDIFF_EMULATED"])
