"""What is measured of an edit: one small file a metric, plain functions of arrays, with units and sources."""
