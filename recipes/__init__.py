"""The recipes, installed as `flexjudge_recipes`: programs that train with a judge, a folder each, and what they share.

Importing this package first lets a program run where torchvision's operators do not load; every recipe does.
"""

from flexjudge_reward.engines.torchvision_mend import mend

mend()
