from lep.evaluation.tasks import FOLDER

print(FOLDER)
