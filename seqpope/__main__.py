"""`python -m seqpope`."""

from seqpope.cli import main

raise SystemExit(main())
