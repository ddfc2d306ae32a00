"""The HTTP service: one Starlette application, run by uvicorn or mounted in BentoML."""
