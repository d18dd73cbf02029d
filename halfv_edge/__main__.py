from halfv_edge.cli.main import main

raise SystemExit(main())
