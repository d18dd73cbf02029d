from halfv_edge.cli import main

raise SystemExit(main())
