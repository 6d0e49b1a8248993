"""A report on indexed data for people: one page of HTML that says how much there is, how good, and
what is wrong.
"""
