"""The stages of preparing a log out of core: read to a spool, number ids, partition, order, filter."""
