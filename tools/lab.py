"""What JupyterLab is given under `make lab`: notebooks are saved clean, and one that is only looked at is unchanged."""
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelspec import get_kernel_dict
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from clean_notebooks import before_save

# what JupyterLab would write into a notebook as soon as its kernel has started, and call that a change
OF_THE_KERNEL = dict(kernelspec=dict(name='python3', display_name=get_kernel_dict()['display_name'], language='python'),
                     language_info=IPythonKernel.language_info)

class Contents(AsyncLargeFileManager):
    "Jupyter's files. A notebook comes with what its kernel says of itself, and loses it again when it is saved."
    async def get(self, path, *arguments, **options):
        model = await super().get(path, *arguments, **options)
        if model['type'] == 'notebook' and model['content']: model['content']['metadata'] |= OF_THE_KERNEL
        return model

c = get_config() # noqa: F821, Jupyter's
c.ServerApp.contents_manager_class = Contents
c.AsyncLargeFileManager.pre_save_hook = before_save
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = 'jupyterlab.NeverCheckForUpdate'
