"""Metrics of an edit: one small file per metric, plain functions of arrays, with units and sources."""
