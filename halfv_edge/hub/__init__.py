"""Where models come from: paths, names, repositories, and the demo model that comes along."""
