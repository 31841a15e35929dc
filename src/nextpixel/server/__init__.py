"""An HTTP server for drawing, scores and features, with a web page. Needs the extra `server`; cli starts it."""
