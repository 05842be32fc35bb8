"""The configs: methods beside this file, models in folders; `with read_base(): from xtp_configs.NAME import *`."""
