"""Jobs for tests of the processes: looked up in this package instead of the studio's."""
