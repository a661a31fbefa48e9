"""JupyterLab settings for `make lab`: notebooks are saved without outputs, and viewing one does not change it."""
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelspec import get_kernel_dict
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from clean_notebooks import before_save

# JupyterLab would add this to a notebook once its kernel has started, and mark the notebook as changed
OF_THE_KERNEL = dict(kernelspec=dict(name='python3', display_name=get_kernel_dict()['display_name'], language='python'),
                     language_info=IPythonKernel.language_info)

class Contents(AsyncLargeFileManager):
    "Jupyter's files: kernel metadata is added when a notebook is opened and removed when it is saved."
    async def get(self, path, *arguments, **options):
        model = await super().get(path, *arguments, **options)
        if model['type'] == 'notebook' and model['content']: model['content']['metadata'] |= OF_THE_KERNEL
        return model

c = get_config() # noqa: F821, Jupyter's
c.ServerApp.contents_manager_class = Contents
c.AsyncLargeFileManager.pre_save_hook = before_save
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = 'jupyterlab.NeverCheckForUpdate'
