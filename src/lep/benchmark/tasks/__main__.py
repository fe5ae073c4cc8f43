from lep.benchmark.tasks import FOLDER

print(FOLDER)
