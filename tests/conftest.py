import os


# no test may reach a hub; set before transformers is imported
os.environ["HF_HUB_OFFLINE"] = "1"
