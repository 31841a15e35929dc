"""Drawing, scores and features over HTTP, and a page for a browser. Needs the extra `server`."""
