"""`python -m flexjudge_reward` is the command line `flexjudge`."""

from flexjudge_reward.cli.main import main

raise SystemExit(main())
