"""Closed-form repair: output projections solved anew, so that the child's state best reaches the parent's."""
