"""HTTP server that generates audio: a queue of jobs, worker processes that hold the models, and an API."""
