import os


# no test may reach a hub; set before transformers is imported
os.environ["HF_HUB_OFFLINE"] = "1"
# workers beside each other share the cores: threads that wait for a busy core cost more than they bring
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
