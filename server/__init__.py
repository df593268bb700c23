"""The central authority: plans, coordinator, aggregation, release, audit."""
