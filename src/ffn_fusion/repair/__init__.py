"""Closed-form repair: output projections are fitted so that the child's states come as close as possible to the
parent's.
"""
