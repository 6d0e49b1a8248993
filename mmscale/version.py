"""The version of this package, which releases and reports carry."""

__version__ = "0.1.0"
