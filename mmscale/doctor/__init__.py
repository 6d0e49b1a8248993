"""What can be known of a cluster before anything is built: one verdict a check, and which machine
is the sick one.

Every check is a file with a look, which a rank takes on its own, and a judgement over what all
ranks found.
"""
